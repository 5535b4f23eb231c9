-- R$ 10.000 or more, overdue since yesterday or longer. For the negotiators' own group, largest first.
--
-- columns: telefone_1;telefone_2;telefone_3;nome;cpf;cidade;uf;contrato;valor;dias_atraso;score;observacao
-- phones: telefone_1, telefone_2, telefone_3
-- unique: contrato
-- min_rows: 20
-- The negotiators open this one in Excel as well, which knows UTF-8 only by its mark.
-- encoding: utf-8-sig
-- Their dialer sorts by name, so the year comes first.
-- file_name: mailing_{campaign}_%Y-%m-%d_%H-%M.csv
SELECT f.telefone_1,
       f.telefone_2,
       f.telefone_3,
       c.nome,
       c.cpf,
       c.cidade,
       c.uf,
       d.contrato,
       d.valor,
       current_date - d.vencimento AS dias_atraso,
       c.score,  -- unknown for some: empty in the file, never 0
       c.observacao
FROM contratos AS d
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE d.situacao = 'aberto'
  AND d.vencimento < current_date
  AND d.valor >= 10000
  AND NOT EXISTS (SELECT FROM acordos AS a WHERE a.contrato = d.contrato AND a.situacao IN ('vigente', 'quebrado'))
  AND NOT EXISTS (SELECT FROM pagamentos AS p WHERE p.contrato = d.contrato AND p.pago_em >= current_date - 3)
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY d.valor DESC, d.contrato;
