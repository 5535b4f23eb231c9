-- A model to copy. It is switched off by the line below, and shows what the others here do not need.
-- enabled: no
-- A drop folder of its own, where it is not SFTP_BASE_DIR and the campaign's name.
-- folder: /entrada/modelo
-- Narrower than RUN_DAYS and RUN_HOURS. The last mailing is that of 17 o'clock.
-- days: mon-fri
-- hours: 09:00-17:00
-- Wait so many seconds for the dialer to take the file, and look where it puts what it refuses.
-- pickup: 120
-- pickup_error_folder: /entrada/modelo/erro
-- columns: telefone_1;nome;cpf;contrato;valor
-- phones: telefone_1
-- unique: cpf
-- min_rows: 1
-- max_rows: 100000
SELECT f.telefone_1,
       c.nome,
       c.cpf,
       d.contrato,
       d.valor
FROM contratos AS d
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE d.situacao = 'aberto'
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY d.vencimento, d.contrato;
