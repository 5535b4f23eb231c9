-- A friendly reminder, one to five days before the due date.
--
-- columns: telefone_1;telefone_2;nome;contrato;valor;vencimento;dias_para_vencer
-- phones: telefone_1, telefone_2
-- unique: contrato
-- min_rows: 100
-- At the end of a month there are five times as many due dates, and after it almost none.
-- max_drop: 95%
-- This campaign runs on the older dialer. It reads Windows-1252, plain line feeds and commas.
-- encoding: cp1252
-- newline: lf
-- delimiter: ,
SELECT f.telefone_1,
       f.telefone_2,
       c.nome,
       d.contrato,
       replace(d.valor::text, '.', ',') AS valor,
       to_char(d.vencimento, 'DD/MM/YYYY') AS vencimento,
       d.vencimento - current_date AS dias_para_vencer
FROM contratos AS d
JOIN clientes AS c USING (cliente_id)
JOIN telefones_discador AS f USING (cliente_id)
WHERE d.situacao = 'aberto'
  AND d.vencimento BETWEEN current_date + 1 AND current_date + 5
  AND c.nome NOT LIKE '%&%'  -- companies get a letter; and a % in a query needs no escaping
  AND NOT EXISTS (SELECT FROM nao_perturbe AS n WHERE n.cpf = c.cpf)
ORDER BY d.vencimento, d.contrato;
